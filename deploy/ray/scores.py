"""
The score service on Ray Serve: replicas of it behind Ray's proxy, of any ranker.

    serve run scores:app
"""

from ray import serve

from pars.server import create_app


@serve.deployment(num_replicas=2, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.5})
@serve.ingress(create_app)
class Scores:
    """Each replica builds the app anew; PREDICTOR_MODEL_PATH names its ranker."""


app = Scores.bind()
