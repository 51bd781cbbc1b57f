"""Where the registry is kept: one protocol, several stores."""
