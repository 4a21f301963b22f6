"""Bounds of configuration values. Those that the C core has too are repeated here, because reading
them from it would load it, and a configuration must be cheap to make."""

#: Tokens that a KV block may hold: divisors of the 256 positions that attention takes at once.
BLOCK_LENS = (16, 32, 64, 128, 256)
#: Most tokens that a sequence may draft in a step.
MAX_DRAFT_TOKENS = 32
#: Answers to one prompt: GenerationConfig.n.
MAX_CHOICES = 128
#: Tokens whose log-probabilities are reported beside the chosen one.
MAX_LOGPROBS = 64
#: Priorities are -MAX_PRIORITY to MAX_PRIORITY.
MAX_PRIORITY = 1000
#: repetition_penalty, a factor, is 1 / MAX_REPETITION_PENALTY to MAX_REPETITION_PENALTY.
MAX_REPETITION_PENALTY = 1e3
#: presence_penalty and frequency_penalty are -MAX_PENALTY to MAX_PENALTY.
MAX_PENALTY = 100.0
#: temperature is at most LMDeploy's bound. The core takes more.
MAX_TEMPERATURE = 2.0
#: Seconds.
MIN_TIMEOUT, MAX_TIMEOUT = 1e-9, 1e8
#: Milliseconds.
MAX_TARGET_STEP_MS = 1e6
