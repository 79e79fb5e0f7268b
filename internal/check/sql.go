package check

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/batuta-ha/batuta/internal/model"
)

// sqlLimit is how much of a database's answers is read. A row is enough, but
// the rows that follow it are read, too, if they are few.
const sqlLimit = 1 << 20

// sqlSettings are the query, or what the configuration lacks. ldirectord calls
// such a server down at each check, and says so in its log.
func sqlSettings(t model.Target) (query string, err error) {
	query = strings.TrimPrefix(t.Request, "/")
	switch {
	case t.Login == "":
		err = fmt.Errorf("a check of %s needs a user: add login=\"...\"", t.Application)
	case query == "":
		err = fmt.Errorf("a check of %s needs a query: add request=\"SELECT ...\"", t.Application)
	default:
		err = portOf(t)
	}
	return query, err
}

// negotiateMySQL logs in, runs the query, and is up if there is a row.
// NegotiateTimeout covers everything; ldirectord has no time-out here.
func negotiateMySQL(ctx context.Context, t model.Target) model.Verdict {
	query, err := sqlSettings(t)
	if err != nil {
		return down(err.Error())
	}
	within, cancel := context.WithTimeout(ctx, t.NegotiateTimeout)
	defer cancel()
	found, err := queryMySQL(within, t, query)
	return rows(ctx, within, t, found, err)
}

func rows(ctx, within context.Context, t model.Target, found bool, err error) model.Verdict {
	switch {
	case err != nil:
		return failed(ctx, within, err, t.NegotiateTimeout)
	case !found:
		return down("the query has no row")
	}
	return up("the query has a row")
}

func queryMySQL(ctx context.Context, t model.Target, query string) (found bool, err error) {
	config := mysql.NewConfig()
	config.User, config.Passwd, config.DBName = t.Login, t.Password, t.Database
	config.Net, config.Addr = "tcp", t.Addr.String()
	config.Logger = &mysql.NopLogger{} // what it would say is in the error
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) { return open(ctx, t.Addr, sqlLimit) }
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return false, err
	}
	conn, err := connector.Connect(ctx)
	if err != nil {
		return false, mysqlFault(err)
	}
	// An orderly end: the server would complain of any other in its log.
	defer conn.Close()
	result, err := conn.(driver.QueryerContext).QueryContext(ctx, query, nil)
	if err != nil {
		return false, mysqlFault(err)
	}
	defer result.Close()
	switch err := result.Next(make([]driver.Value, len(result.Columns()))); {
	case errors.Is(err, io.EOF):
		return false, nil
	case err != nil:
		return false, mysqlFault(err)
	}
	return true, nil
}

// mysqlFault makes an error that the driver names by its own troubles, or the
// server's words, fit for one line.
func mysqlFault(err error) error {
	var said *mysql.MySQLError
	switch {
	case errors.As(err, &said):
		return errors.New(clean(said.Error()))
	case errors.Is(err, mysql.ErrInvalidConn), errors.Is(err, driver.ErrBadConn), errors.Is(err, io.EOF):
		return errors.New("connection closed, or no MySQL answer on it")
	case errors.Is(err, mysql.ErrMalformPkt), errors.Is(err, mysql.ErrPktSync):
		return errors.New("not a MySQL answer: " + clean(err.Error()))
	}
	return err
}

// negotiatePgSQL is negotiateMySQL for PostgreSQL.
func negotiatePgSQL(ctx context.Context, t model.Target) model.Verdict {
	query, err := sqlSettings(t)
	if err != nil {
		return down(err.Error())
	}
	defaults, err := pgDefaults()
	if err != nil {
		return unknown("this machine's settings for PostgreSQL clients (PG... in the environment): " + clean(err.Error()))
	}
	within, cancel := context.WithTimeout(ctx, t.NegotiateTimeout)
	defer cancel()
	found, err := queryPgSQL(within, t, query, defaults.Copy())
	return rows(ctx, within, t, found, err)
}

// pgDefaults is the configuration that the library insists on making, which
// looks into the environment and files, once: TLS if the server has it, its
// certificate not verified (libpq's sslmode=prefer).
var pgDefaults = sync.OnceValues(func() (*pgconn.Config, error) {
	return pgconn.ParseConfig("host=real.invalid port=5432 user=check sslmode=prefer target_session_attrs=any")
})

func queryPgSQL(ctx context.Context, t model.Target, query string, config *pgconn.Config) (found bool, err error) {
	config.User, config.Password, config.Database = t.Login, t.Password, t.Database
	config.Host, config.Port, config.ConnectTimeout = t.Addr.Addr().String(), t.Addr.Port(), 0
	config.MaxProtocolMessageBodyLen = sqlLimit
	for _, f := range config.Fallbacks { // without TLS
		f.Host, f.Port = config.Host, config.Port
	}
	config.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	config.DialFunc = func(context.Context, string, string) (net.Conn, error) { return open(ctx, t.Addr, sqlLimit) }
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return false, pgFault(err)
	}
	defer conn.Close(ctx)
	results := conn.Exec(ctx, query)
	for results.NextResult() && !found {
		found = results.ResultReader().NextRow()
	}
	if err := results.Close(); err != nil && !found {
		return false, pgFault(err)
	}
	return found, nil
}

// pgFault picks the server's own words, or the reason of the last attempt.
func pgFault(err error) error {
	if said, ok := errors.AsType[*pgconn.PgError](err); ok {
		return fmt.Errorf("%s: %s (%s)", clean(said.Severity), clean(said.Message), clean(said.Code))
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op
	}
	if connect, ok := errors.AsType[*pgconn.ConnectError](err); ok && errors.Unwrap(connect) != nil {
		err = errors.Unwrap(connect)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("connection closed before a PostgreSQL answer was complete")
	}
	return errors.New("not a PostgreSQL answer: " + clean(err.Error()))
}
