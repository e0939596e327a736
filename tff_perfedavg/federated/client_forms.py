"""The names of how many users a TFF client stands for. Plain Python, for flags."""

AUTO = "auto"
USERS = "users"
BLOCKS_LOOP = "blocks_loop"
BLOCKS_VECTORIZED = "blocks_vectorized"
CLIENT_FORMS = (AUTO, USERS, BLOCKS_LOOP, BLOCKS_VECTORIZED)
