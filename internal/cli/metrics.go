package cli

import (
	"github.com/spf13/cobra"

	"github.com/batuta-ha/batuta/internal/api"
)

func newMetricsCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print what the running daemon tells Prometheus",
		Long: `Print the daemon's metrics in Prometheus' text format: results and durations of
the checks (probe_success, probe_duration_seconds), the table by the names that
node_exporter has for IPVS, whatever carries the packets, and the state of
nodes, links and resources.

The daemon gives the same at /metrics on its control socket. For a Prometheus
that reads node_exporter's textfile directory, write it there now and then.`,
		Example: "  batuta metrics\n  batuta metrics > /var/lib/prometheus/node-exporter/batuta.prom",
		Args:    positional(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := o.client().Status(cmd.Context())
			if err != nil {
				return err
			}
			t, err := o.client().Table(cmd.Context())
			if err != nil {
				return err
			}
			api.WriteMetrics(cmd.OutOrStdout(), st, t)
			return nil
		},
	}
}
