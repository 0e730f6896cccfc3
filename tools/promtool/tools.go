//go:build tools

// Package promtool names what tools/setup builds, so that its version stands in go.mod.
package promtool

import _ "github.com/prometheus/prometheus/cmd/promtool"
