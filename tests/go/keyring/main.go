// Reads pull secrets, patterns of credential providers and image names, one JSON object a line, and
// writes which credentials kubelet's own keyring finds for each image, and which patterns match it,
// one JSON object a line.
package main

import (
	"bufio"
	"encoding/json"
	"log"
	"os"
	"reflect"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/credentialprovider"
	"k8s.io/kubernetes/pkg/credentialprovider/secrets"
	"k8s.io/kubernetes/pkg/util/parsers"
)

type question struct {
	Secrets []struct {
		Type    v1.SecretType `json:"type"`
		Content []byte        `json:"content"` // base64
	} `json:"secrets"`
	MatchImages []string `json:"matchImages"`
	Images      []string `json:"images"`
}

type answer struct {
	OK bool `json:"ok"`
	// For each pattern, the images that it matches; null for what kubelet refuses as a pattern.
	Matches [][]bool `json:"matches"`
	// For each image, the credentials in kubelet's order.
	Found [][]credential `json:"found"`
}

type credential struct {
	Username string `json:"username"`
	Password string `json:"password"`
	// The pattern that it was found by. Where one file spells one pattern twice, Go's random map
	// order decides which comes first.
	Key string `json:"key"`
}

func answerTo(question question) answer {
	var objects []v1.Secret
	for _, secret := range question.Secrets {
		key := v1.DockerConfigJsonKey
		if secret.Type == v1.SecretTypeDockercfg {
			key = v1.DockerConfigKey
		}
		objects = append(objects, v1.Secret{
			Type: secret.Type,
			Data: map[string][]byte{key: secret.Content},
		})
	}
	keyring, err := secrets.MakeDockerKeyring(objects, &credentialprovider.BasicDockerKeyring{})
	answer := answer{Matches: matches(question), Found: [][]credential{}}
	if err != nil {
		return answer
	}
	keys := keysByUsername(keyring)
	answer.OK = true
	for _, image := range question.Images {
		repository, _, _, err := parsers.ParseImageName(image)
		if err != nil {
			log.Fatalf("%q: %v", image, err)
		}
		found := []credential{}
		configs, _ := keyring.Lookup(repository)
		for _, config := range configs {
			found = append(found, credential{config.Username, config.Password, keys[config.Username]})
		}
		answer.Found = append(answer.Found, found)
	}
	return answer
}

func matches(question question) [][]bool {
	all := [][]bool{}
	for _, pattern := range question.MatchImages {
		if _, err := credentialprovider.ParseSchemelessURL(pattern); err != nil {
			all = append(all, nil)
			continue
		}
		matched := []bool{}
		for _, image := range question.Images {
			repository, _, _, err := parsers.ParseImageName(image)
			if err != nil {
				log.Fatalf("%q: %v", image, err)
			}
			matches, _ := credentialprovider.URLsMatchStr(pattern, repository)
			matched = append(matched, matches)
		}
		all = append(all, matched)
	}
	return all
}

// keysByUsername tells the pattern of each user name, which is unique in a question.
func keysByUsername(keyring credentialprovider.DockerKeyring) map[string]string {
	keys := map[string]string{}
	union, ok := keyring.(credentialprovider.UnionDockerKeyring)
	if !ok {
		return keys
	}
	for entries := reflect.ValueOf(union[0]).Elem().FieldByName("creds").MapRange(); entries.Next(); {
		for i := range entries.Value().Len() {
			username := entries.Value().Index(i).FieldByName("Username").String()
			keys[username] = entries.Key().String()
		}
	}
	return keys
}

func main() {
	// Entries that are no URL are reported one by one.
	klog.SetLogger(logr.Discard())

	input := bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 1<<26)
	output := bufio.NewWriter(os.Stdout)
	encoder := json.NewEncoder(output)
	for input.Scan() {
		var question question
		if err := json.Unmarshal(input.Bytes(), &question); err != nil {
			log.Fatal(err)
		}
		if err := encoder.Encode(answerTo(question)); err != nil {
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
