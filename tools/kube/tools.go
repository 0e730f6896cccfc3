//go:build tools

// Package kubetools names the parts of Kubernetes that tests run: go.mod pins them, and tools/setup builds them.
package kubetools

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
)
