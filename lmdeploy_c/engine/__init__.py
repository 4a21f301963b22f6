"""A loaded model with text in and answers out (text_engine), and conversations with it (session).

Must not know: pipelines, servers, the command line.
"""
