"""Names of the forms of client data.

Plain Python, for flags.
"""

AUTO = "auto"
USERS = "users"
BLOCKS_LOOP = "blocks_loop"
BLOCKS_VECTORIZED = "blocks_vectorized"
CLIENT_FORMS = (AUTO, USERS, BLOCKS_LOOP, BLOCKS_VECTORIZED)
