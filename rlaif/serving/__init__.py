"""A server of the base and its policies that speaks OpenAI's chat completions API."""
