"""State around an application or a handler: `ASGIStateMiddleware` and `StateMiddleware`.

FastAPI's dependency is in `agentstate.middleware.fastapi`. No web framework is imported here.
"""

from agentstate.middleware.asgi import ASGIStateMiddleware
from agentstate.middleware.chain import StateMiddleware

__all__ = ["ASGIStateMiddleware", "StateMiddleware"]
