"""Heartbeats on Redis: sent to one gateway process, heard by all."""
