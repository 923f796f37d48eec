"""How much one HTTP request may ask for, and how long it may take; docs/serve.md lists these numbers."""

MAX_BODY_BYTES = 1_000_000
MAX_PROMPTS = 32  # in one request
MAX_CHOICES = 32  # prompts x n
MAX_MESSAGES = 1_000
MAX_TOKENS = 32_768  # new tokens of a text
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 1_000
MAX_LOGPROBS, MAX_TOP_LOGPROBS = 5, 20  # alternatives for each token: of a completion, of a chat
MAX_NEXT_WORDS = 100
MAX_EXPLAIN_CHARACTERS = 4_000
MAX_MEMORY_CHARACTERS = 20_000
MAX_ANALYSES = 8  # requests to explain, list words or search, at one time; more are refused
MAX_CONNECTIONS = 256

RECEIVE_SECONDS = 10  # for the head of a request, and for its body
REQUEST_SECONDS = 600  # for a text, with the time in the queue
UNREAD_SECONDS = 30  # that a client may leave its answer unread
UNREAD_TOKENS = 256  # of a request, after which its texts wait until they are read, and others have their places
KEEP_ALIVE_SECONDS = 10  # after which a stream without text sends a comment
DRAIN_SECONDS = 3  # for the answers in progress, when the server is asked to end
