"""Names of spans and attributes, so that gateway, agent and dashboards agree.

`gen_ai.*` follows OpenTelemetry's semantic conventions for generative AI; `cocoon.*` is ours. No attribute ever
holds a prompt, a completion or a key.
"""

SPAN_AUTHENTICATE = "authenticate"
SPAN_ADMIT = "admit"
SPAN_ROUTE = "route"
SPAN_RELAY = "relay"
SPAN_SETTLE = "settle"
SPAN_AGENT_JOB = "agent job"
SPAN_ENGINE = "engine"

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
ERROR_TYPE = "error.type"

JOB_ID = "cocoon.job_id"
ATTEMPT = "cocoon.attempt"
WORKER_ID = "cocoon.worker_id"
OUTCOME = "cocoon.outcome"
CHARGE_NANO = "cocoon.charge_nano"
TIME_TO_FIRST_TOKEN_MS = "cocoon.time_to_first_token_ms"  # noqa: S105  tokens of a model, not of a login
CACHED_TOKENS = "cocoon.usage.cached_tokens"
STREAM = "cocoon.stream"
