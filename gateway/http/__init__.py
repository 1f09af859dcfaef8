"""Where HTTP begins and ends: handlers, headers, status codes. Nothing below knows of them."""
