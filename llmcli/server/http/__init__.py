"""HTTP: routes, access, limits, listening."""
