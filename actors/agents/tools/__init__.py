"""Tools of agents: Python functions, flows, HTTP, MCP servers, a repository. Start at ``interface``."""
