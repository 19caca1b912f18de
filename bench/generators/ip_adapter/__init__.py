"""IP-Adapter-Plus on Stable Diffusion v1.5 (Ye et al. 2023): pictures from 16 predicted image tokens."""

from bench.generators.ip_adapter.model import IpAdapter, IpAdapterOptions

__all__ = ["IpAdapter", "IpAdapterOptions"]
