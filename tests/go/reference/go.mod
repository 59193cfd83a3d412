// The original that imagewarm's own parser is compared with, by tests/reference_differential.rs.
module imagewarm/tests/reference

go 1.26.0

require (
	github.com/distribution/reference v0.6.0
	github.com/opencontainers/go-digest v1.0.0 // indirect
)
