"""The Kubernetes side: controller and coordinator server."""
