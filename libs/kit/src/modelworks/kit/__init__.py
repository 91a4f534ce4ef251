"""What every service needs and no service is about: errors, settings, logging, telemetry, tokens, policy, health."""
