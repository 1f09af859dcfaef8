"""Intel TDX: quotes, event logs, collateral and their verification."""
