//! Pages over reports.
