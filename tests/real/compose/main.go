// Loads docker-compose.yml with the loader that `docker compose` itself is built on: schema, interpolation, merge
// keys, references between services, networks and volumes. Prints the project as JSON, all profiles included.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	options, err := cli.NewProjectOptions(os.Args[1:2], cli.WithOsEnv, cli.WithEnvFiles(os.Args[2:]...), cli.WithDotEnv,
		cli.WithProfiles([]string{"*"}))
	exitOn(err)
	project, err := options.LoadProject(context.Background())
	exitOn(err)
	document, err := project.MarshalJSON()
	exitOn(err)
	fmt.Println(string(document))
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
