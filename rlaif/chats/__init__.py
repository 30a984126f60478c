"""What comes back from use: chats with a served policy, votes and preferences: kept, exported, counted."""
