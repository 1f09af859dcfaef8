"""NVIDIA GPUs: SPDM measurement reports and reference manifests, without any SDK of the vendor."""
