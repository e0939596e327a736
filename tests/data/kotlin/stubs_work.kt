package androidx.work

import android.content.Context

class WorkerParameters

abstract class ListenableWorker(private val context: Context, parameters: WorkerParameters) {
    abstract class Result {
        companion object {
            @JvmStatic fun success(): Result = TODO()
            @JvmStatic fun retry(): Result = TODO()
            @JvmStatic fun failure(): Result = TODO()
        }
    }

    val applicationContext: Context get() = context
    val isStopped: Boolean get() = TODO()
}

abstract class Worker(context: Context, parameters: WorkerParameters) : ListenableWorker(context, parameters) {
    abstract fun doWork(): Result
}

class Constraints {
    class Builder {
        fun setRequiresCharging(requiresCharging: Boolean): Builder = this
        fun setRequiresDeviceIdle(requiresDeviceIdle: Boolean): Builder = this
        fun build(): Constraints = TODO()
    }
}

class OneTimeWorkRequest {
    class Builder(worker: Class<out ListenableWorker>) {
        fun setConstraints(constraints: Constraints): Builder = this
        fun build(): OneTimeWorkRequest = TODO()
    }
}

enum class ExistingWorkPolicy { REPLACE, KEEP }

abstract class WorkManager {
    abstract fun enqueueUniqueWork(name: String, policy: ExistingWorkPolicy, request: OneTimeWorkRequest): Any

    companion object {
        @JvmStatic fun getInstance(context: Context): WorkManager = TODO()
    }
}
