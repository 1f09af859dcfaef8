"""TON: whatever needs a library of cells, wallets or liteservers is here and nowhere else."""
