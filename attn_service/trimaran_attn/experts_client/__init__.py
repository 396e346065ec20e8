"""The way to the routed experts: one or several expert services, on this host or another.

client      `ExpertsClient`: fan-out over shards, splitting of large batches
tickets     layers under way
calls       a call of one layer on all shards, natively or by messages
coverage    whether the shards make up the model
link        one shard: hello, heartbeats, loss and reconnection
transports  what a session is made of: doorbell, zmq or tcp
statuses    status codes as errors
bf16        float32 ⇄ the bits of bfloat16
"""

from __future__ import annotations

from trimaran_attn.experts_client.client import ExpertsClient
from trimaran_attn.experts_client.link import LinkState, ModelFacts, ShardStatus
from trimaran_attn.experts_client.tickets import Ticket

__all__ = ["ExpertsClient", "LinkState", "ModelFacts", "ShardStatus", "Ticket"]
