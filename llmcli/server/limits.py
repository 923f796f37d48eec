"""Limits on the size and duration of an HTTP request; docs/serve.md lists these numbers."""

MAX_BODY_BYTES = 1_000_000
LARGE_BODY_BYTES = 50_000  # tokenizing a smaller body takes up to 0.2 s
MAX_PROMPTS = 32  # per request
MAX_CHOICES = 32  # prompts x n
MAX_MESSAGES = 1_000
MAX_TOKENS = 32_768  # new tokens per text
MAX_TEMPERATURE = 100
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1_000
# maximum alternatives per token, in completions and in chats
MAX_LOGPROBS = 5
MAX_TOP_LOGPROBS = 20
# number and length of the texts among which the model chooses
MAX_GIVEN_CHOICES = 256
MAX_GIVEN_CHARACTERS = 2_000
MAX_BIASES = 1_000  # tokens in logit_bias
MAX_NEXT_WORDS = 100
MAX_EXPLAIN_CHARACTERS = 4_000
MAX_SWITCHED_OFF = 1_024  # layers and heads
MAX_MEMORY_CHARACTERS = 20_000
# concurrent requests with a grammar or a large body (their preparation takes seconds); others wait
MAX_PREPARING = 2
MAX_ANALYSES = 8  # concurrent requests to /v1/explain, next, memory and experts; more are refused
MAX_CONNECTIONS = 256
# per address, with a class code: requests and wrong codes in a minute, requests in progress
CLASS_REQUESTS = 600
CLASS_WRONG_CODES = 10
CLASS_CONCURRENT = 6  # a browser sends at most 6 requests to a server at a time
# wrong codes in a minute from an IPv6 network, where a device may have any number of addresses; after a
# restart, all browsers of a class may send the previous code
CLASS_NETWORK_WRONG_CODES = 100

RECEIVE_SECONDS = 10  # time for the head of a request, and again for its body
REQUEST_SECONDS = 600  # time for an answer, including the queue
UNREAD_SECONDS = 30  # a client that leaves its answer unread for longer is disconnected
UNREAD_TOKENS = 256  # a request with more is paused until they are read, so that others can be decoded
KEEP_ALIVE_SECONDS = 10  # time without text after which a stream sends a comment
DRAIN_SECONDS = 3  # time for answers in progress at shutdown
