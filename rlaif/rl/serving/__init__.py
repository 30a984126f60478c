"""Rollouts on vLLM servers: adapters are handed over as files, completions come back as token ids."""
