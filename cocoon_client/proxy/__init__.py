"""A local OpenAI endpoint for programs in any language: plain on loopback, sealed beyond it."""
