"""What the `openai` engine is made of: requests, replies, servers, keys and costs. `session` and below need
the extra `[api]`."""
