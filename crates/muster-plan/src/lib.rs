//! Catalog and request to graph, plan, checks, forecast.
