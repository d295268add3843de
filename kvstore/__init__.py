"""The KV cache: identities, views, pages and the store. Knows neither Ray nor workflows."""
