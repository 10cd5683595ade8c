"""The NBD protocol, the client side: addresses, handshake, requests and replies. Pure: values in and out.

The modules follow the document "The NBD protocol" of the Network Block Device project (proto.md) and
"NBD Uniform Resource Indicator" (uri.md), and use their names. Clauses are cited by their headings.
"""
