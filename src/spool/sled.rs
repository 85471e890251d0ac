//! The spool on disk. (in work)
