# Batuta: build, test, show. See CONTRIBUTING.md.
GO ?= go

.PHONY: build
build: ## write bin/batuta
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/batuta ./cmd/batuta
