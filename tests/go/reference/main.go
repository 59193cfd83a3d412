// Reads image names, one JSON string a line, and writes what distribution/reference makes of each,
// one JSON object a line.
package main

import (
	"bufio"
	// Digests of an algorithm that is not linked in count as unsupported.
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/json"
	"log"
	"os"

	"github.com/distribution/reference"
)

type verdict struct {
	OK        bool   `json:"ok"`
	Domain    string `json:"domain"`
	Path      string `json:"path"`
	Tag       string `json:"tag"`
	Digest    string `json:"digest"`
	Canonical string `json:"canonical"`
}

func judge(text string) verdict {
	named, err := reference.ParseNormalizedNamed(text)
	canonical, canonicalErr := reference.ParseDockerRef(text)
	if (err == nil) != (canonicalErr == nil) {
		log.Fatalf("%q: %v, but %v", text, err, canonicalErr)
	}
	if err != nil {
		return verdict{}
	}
	verdict := verdict{
		OK:        true,
		Domain:    reference.Domain(named),
		Path:      reference.Path(named),
		Canonical: canonical.String(),
	}
	if tagged, ok := named.(reference.Tagged); ok {
		verdict.Tag = tagged.Tag()
	}
	if digested, ok := named.(reference.Digested); ok {
		verdict.Digest = digested.Digest().String()
	}
	return verdict
}

func main() {
	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 1<<24)
	output := bufio.NewWriter(os.Stdout)
	encoder := json.NewEncoder(output)
	encoder.SetEscapeHTML(false)
	for input.Scan() {
		var text string
		if err := json.Unmarshal(input.Bytes(), &text); err != nil {
			log.Fatal(err)
		}
		if err := encoder.Encode(judge(text)); err != nil {
			log.Fatal(err)
		}
	}
	if err := input.Err(); err != nil {
		log.Fatal(err)
	}
	if err := output.Flush(); err != nil {
		log.Fatal(err)
	}
}
