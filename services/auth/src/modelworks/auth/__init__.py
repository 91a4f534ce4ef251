"""Who may ask: clients, access tokens and the keys that sign them."""
