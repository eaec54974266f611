//! vcpu_op.
