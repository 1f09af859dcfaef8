"""The program beside the engine.

Part of a measured image, so it stays small: of this repository it imports `cocoon` only.
"""
