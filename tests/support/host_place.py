"""Hosts on several Ray nodes: each has to run on the driver's, whatever the others have free."""

from __future__ import annotations

import ray
from ray.cluster_utils import Cluster

from laban.actors.remote import RemoteHost

NODE = {"object_store_memory": 100 << 20, "include_dashboard": False}


class Where:
    """Implements HostedService. Its address is the node that it runs on."""

    async def start(self) -> str:
        return ray.get_runtime_context().get_node_id()

    async def stop(self) -> None: ...


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
    try:
        cluster.add_node(**NODE, num_cpus=1)
        cluster.add_node(**NODE, num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        here = ray.get_runtime_context().get_node_id()
        hosts = [RemoteHost("host_place:Where") for _ in range(4)]
        places = [host.wait(60) for host in hosts]
        assert places == [here] * 4, f"{places}, expected {here}"
        print("all here")
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
