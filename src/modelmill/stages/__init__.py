"""DO: what runs in a stage container, and the entrypoint that all of them share."""
