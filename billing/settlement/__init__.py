"""Settlement on TON: what the biller watches, decides and sends."""
