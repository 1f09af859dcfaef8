"""Evidence bytes -> verified claims -> a verdict under a policy.

Nothing here does I/O except an implementation of the port that fetches collateral. There is one way to judge
(`attestation.judge`), whatever the hardware and whether it is real or simulated: trust roots are data.
"""
