"""The HTTP server: OpenAI's, Anthropic's and LMDeploy's routes on a text engine.

server.py runs it, app.py is the ASGI application, and each family of routes has a file. Importing
this package costs nothing; `pip install lmdeploy_c[serve]` brings what running it needs.
"""
