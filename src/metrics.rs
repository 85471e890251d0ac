//! Every metric, in one struct. (in work)
