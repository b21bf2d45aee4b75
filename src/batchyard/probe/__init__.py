"""The contract probe: one claim of the Message Batches API at a time, asked of any server.

Speaks only the wire, and nothing but HTTP/1.1 of the standard library: what it needs are odd
requests and untouched answers. Imports nothing of our server and nothing of our client.
"""
