"""The inside of `render`: graphs of generators, requests, Serve deployments and their client."""
