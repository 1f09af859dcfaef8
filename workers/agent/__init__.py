"""The program beside the engine. Part of a measured image: it imports `cocoon` (later `attestation`), nothing else of ours."""
