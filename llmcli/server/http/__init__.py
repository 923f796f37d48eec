"""The HTTP layer: routes, access checks, listening."""
